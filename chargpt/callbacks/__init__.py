"""What happens beside the training steps, one file for each callback.

`conf/callbacks` switches them on and off, all but `RunRecord`, which needs the settings.
"""
