"""What the service counts, and how it is read: by Prometheus and by the dashboard."""
