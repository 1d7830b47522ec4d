"""Where the tissue is: anatomical and geometrical phantoms, and maps drawn on them."""
