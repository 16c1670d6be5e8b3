"""Semantic similarity for nlptasks: embeddings of texts, the similarity of two texts, and search by meaning."""

from nlptasks_similarity.head import Embedding, Similarity, SimilarityConfig, SimilarityHead
from nlptasks_similarity.rows import SimilarityExample
from nlptasks_similarity.searching import Hit, Search

__all__ = ["Embedding", "Hit", "Search", "Similarity", "SimilarityConfig", "SimilarityExample", "SimilarityHead"]
