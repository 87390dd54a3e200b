"""The service's metrics, and how Prometheus and the dashboard read them."""
