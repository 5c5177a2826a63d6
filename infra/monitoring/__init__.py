"""Dashboard and alerts for Prometheus and Grafana. No command imports them."""
