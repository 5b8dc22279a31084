"""Networks: functions of (x, t, condition), with no diffusion in them."""
