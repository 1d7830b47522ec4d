"""Studies: their configs, the methods that they name, and how they are run; `registry` lists the kinds."""
