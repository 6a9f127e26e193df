"""The Robomimic tasks on robosuite 1.5: stock simulator as reference, batched stepper as default."""
