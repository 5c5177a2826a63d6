"""Migrations of the database of cases, by Alembic."""
