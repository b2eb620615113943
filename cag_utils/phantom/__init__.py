"""The digital phantom: a coronary tree, a C-arm, a bolus and a detector, with every truth known."""
