"""Drift: how the crops of each camera change from week to week, without labels."""
