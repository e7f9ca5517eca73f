"""One toy of everything that is registered. A test puts them into a copy of the packages: a module and a registry line each."""
