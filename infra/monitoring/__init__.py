"""Dashboard and alerts for Prometheus and Grafana; nothing of it is imported by a verb."""
