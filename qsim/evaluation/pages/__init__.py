"""What studies show: sentences, tables, figures and the pages that hold them."""
