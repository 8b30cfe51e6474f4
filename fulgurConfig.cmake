# find_package(fulgur) gives fulgur::base, fulgur::text, fulgur::io, fulgur::ops, fulgur::model, fulgur::train, fulgur::rl and
# fulgur::eval. It needs the libtorch Fulgur was built with: -DTorch_DIR=... or CMAKE_PREFIX_PATH.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
find_dependency(Torch)
find_dependency(nlohmann_json)
find_dependency(ZLIB)
find_dependency(CURL)
find_dependency(PkgConfig)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(GUMBO REQUIRED IMPORTED_TARGET gumbo)
include(${CMAKE_CURRENT_LIST_DIR}/fulgurTargets.cmake)

# libtorch's own libgomp, so that only one loads; the system's where it bundles none.
get_filename_component(fulgur_torch_lib ${TORCH_LIBRARY} DIRECTORY)
file(GLOB fulgur_gomp ${fulgur_torch_lib}/libgomp*.so.1)
if(NOT fulgur_gomp)
  set(fulgur_gomp gomp)
endif()
set_property(TARGET fulgur::base APPEND PROPERTY INTERFACE_LINK_LIBRARIES ${fulgur_gomp})
set_property(TARGET fulgur::torch APPEND PROPERTY INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${TORCH_INCLUDE_DIRS})
set_property(TARGET fulgur::torch APPEND PROPERTY INTERFACE_INCLUDE_DIRECTORIES ${TORCH_INCLUDE_DIRS})
set_property(TARGET fulgur::torch APPEND PROPERTY INTERFACE_COMPILE_OPTIONS ${TORCH_CXX_FLAGS})
