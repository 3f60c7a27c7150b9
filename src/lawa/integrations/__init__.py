"""The averager in other people's trainers: lifecycles are translated, arithmetic there is none."""
