"""The archive's format, and the way of a frame from storage to the devices, each process its own bytes.

Read archive.py and layout.py for what lies on disk, packing.py for how numbers lie in it, sampling.py for which frames
a step takes; then the reading: boxes.py, reader.py, loader.py, with files.py and buffers.py below them.
standardization.py turns stored values into the model's input on the device. verify.py and checksums.py find a flipped
byte.
"""
