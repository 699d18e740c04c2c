"""Data in: the shop simulator, loaders of public files, and how their events reach the log or the lake."""
