"""The OAuth 2.0 API: what the operations of `homeserver.features.oauth` and the account pages share.

- `clients`: what a client registers about itself, and which redirect URIs are its own (`redirect_uris`).
- `requests`: `read_request` checks an authorization request; `store_code` lets the client in, `refuse` sends it away.
- `device_grants`: a client without a browser waits for a person who types its code on a page.
- `sessions`: which of a user's devices belong to which client. It ends with the device, and the device with it.
- `grants`: the token endpoint.
- `cross_signing`: a reset of cross-signing that was approved on the account page.

The grants, PKCE and the order of their checks are Authlib's, a library that is independent of storage and framework.
Ours are the storage, the scopes and redirect URIs of Matrix, one-time codes, the rotation of refresh tokens
(`homeserver.authenticate.refresh`), and all limits. Spec: client-server-api/#oauth-20-api
"""
