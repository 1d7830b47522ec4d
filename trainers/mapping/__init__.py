"""`qsim map`: from a measured series to maps as BIDS derivatives."""
