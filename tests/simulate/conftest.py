from hypothesis import settings

# A machine under load must not fail a test.
settings.register_profile("simulate", deadline=None)
settings.load_profile("simulate")
