"""The components that come with sera-core, registered through the same hooks as anyone's."""
