"""For tests of what is built on engineroom: pytest plugins."""
