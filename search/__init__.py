"""Full-text search over documents. Knows no Matrix. Not begun: docs/roadmap.md says what comes first."""
