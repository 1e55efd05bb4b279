"""The tests. They mirror the packages; what several files share lies in `tests.support`."""
