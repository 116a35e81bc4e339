"""Files in a folder or an object store: reading, publishing whole or not at all, errors in one sentence.

- `urls`: a path or URL becomes a file system; how often a store is asked again
- `failures`: whatever a store's client raises becomes one sentence
- `whole`: a file or folder on a disk appears whole or not at all
- `store`: the output folder, which is read and written
- `copies`: files of a store are copied to this machine
- `places`: the folder of a data set, which is only read
"""
