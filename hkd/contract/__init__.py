"""What every method keeps, as tests that anybody runs on a method of their own:

    pytest --pyargs hkd.contract --method my_pkg.my_file:MyMethod

Needs pytest, and nothing else that the library does not.
"""
