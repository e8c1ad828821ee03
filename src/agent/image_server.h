/* A page-server of our own, for an image on this host: it ends with us. */
#pragma once
#include <sys/types.h>
#include "wire/addr.h"
#include "wire/ident.h"

struct image_server {
	pid_t pid; /* 0: none */
	char address[ADDR_TEXT];
	char name[64]; /* of the image: the last part of its path */
};

/* path: of the image, which need not be there. The page-server is the program beside this one. */
int image_server_start(struct image_server *s, const char *path, const struct mig_token *token,
		       struct cr_err *err) must_check;
void image_server_stop(struct image_server *s); /* once it has written what it has */
