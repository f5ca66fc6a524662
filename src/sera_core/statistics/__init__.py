"""What runs of several seeds say together: means and paired differences with intervals, verdicts, frontiers."""
