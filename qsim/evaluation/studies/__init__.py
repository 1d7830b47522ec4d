"""What each kind of study computes, and the rows it writes."""
