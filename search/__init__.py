"""Full-text search over documents. Knows no Matrix: a document has a number, a time, a group, an author, and a text.

- `homeserver.search.words` splits text into words, in any script.
- `homeserver.search.query` parses what a person types, and says whether a text matches it. This is the rule: whatever
  an index answers is what a scan of all texts with this rule would find.
- `homeserver.search.index.Index` keeps documents in a folder, and proposes those that may match, newest first.
- `homeserver.search.service.Service` is an index as the object of a process of its own.

An index stores which words a document has, not where. So it proposes every document that matches, and some that do not:
those with all words of a phrase in another order. Its user has the texts, and applies the rule to each proposal.
"""
