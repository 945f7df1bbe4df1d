"""Stand-ins for servers that cannot be had here, each as strict as its vendor's procedure.

A product is a module whose `main(product)` is what its command-line clients
run. The server itself is a file that all of them share (`product.Product`), as
the clients of a real one share the server.
"""
