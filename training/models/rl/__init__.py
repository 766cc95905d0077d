"""Reinforcement-learning agents."""
