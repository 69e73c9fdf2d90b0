"""A local Upbit: WebSocket, REST and the truth about what it said.

`exchange` decides who gets which book when, `walk` and `playback` are the two places books come from,
`session` is one client's socket, `server` puts them behind one port. `faults` names what can go wrong,
`injection` makes it happen: to books on their way (`distortion`), at the door (`gate`), to a connection
(`session`, `wire`). `journal` writes down what really went out. Belongs here: behaviour of the exchange
that a client can see. Does not belong here: anything that the platform itself needs to run against the real
exchange (`ingest_services.upbit`), or a look into the platform: the simulator knows its clients only by
their sockets.
"""
