"""A run as one HTML page: what it retrieves, its charts, and the template page.html."""
