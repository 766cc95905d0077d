"""The bitemporal stores."""
