"""Which images does a folder of classes hold? Class folders, lists with labels, and data sets known by name."""
