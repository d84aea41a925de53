"""The room: its event graph, its state, its timeline. No routes, no network.

`append` is how this server's events enter a room, `receive` how those of others do; both end at the head (`heads`).
`storage` keeps events, `state_tree` states, `timeline` reads history, `visibility` and `access` say who may read it.
"""
