"""Explanations of a pair's score: the terms of words and regions, and their plot."""
