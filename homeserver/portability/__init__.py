"""Portable history: rooms and people's data as folders of files, and such folders as rooms again.

`rooms.export_room` and `people.export_person` write a folder (`folders.NewFolder`), `importing.import_room` reads one
(`folders.OldFolder`). The format is described in docs/export.md.
"""
