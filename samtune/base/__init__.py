"""What stands below everything: files, folders, the machine, child processes, the tracker."""
