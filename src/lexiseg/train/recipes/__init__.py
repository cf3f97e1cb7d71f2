"""One recipe per trained model: what trains, on what, with which numbers."""
