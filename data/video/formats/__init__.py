"""Public formats of video data sets, one file each, read and written."""
