"""What happens beside the training steps: one job for each callback, in any order.

`conf/callbacks` switches them on and off, except `RunRecord`, which needs the settings.
"""
