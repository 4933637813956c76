"""The report of a run as one HTML page: retrieved candidates, charts, and the template page.html."""
