"""What the drawn anatomies (liver, heart) share: outlines, painting, cohorts."""
