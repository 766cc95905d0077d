"""Rating, gates, selection and stages."""
