"""What goes wrong between the tissue and the image, one file per artefact."""
