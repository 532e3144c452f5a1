"""The cluster as roles see it: which nodes there are or can be, who fits where, and whether a cluster file is right."""
