"""The honest table: methods on one store, split, label and costs; one row a run, statistics from what runs keep."""
