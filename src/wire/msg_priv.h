/* What the files that translate messages share: private to msg*.c. */
#pragma once
#include "wire/msg.h"
#include "wire/pb.h"
#include "proto/control.pb-c.h"

/* One kind of message. put fills an initialised protobuf message from m, borrowing and allocating
 * from the arena; get fills m likewise. put fails only when memory is out. */
struct msg_codec {
	const char *name;
	const ProtobufCMessageDescriptor *type;
	int (*put)(struct arena *a, const struct msg *m, void *pb);
	int (*get)(struct arena *a, struct msg *m, void *pb, struct cr_err *err);
};

/* NULL for an unknown type. */
const struct msg_codec *msg_codec_of(enum msg_type t);

/* Everything that can be checked on the plain data. Fills *err with kind PEER, -EPROTO. */
int msg_check(const struct msg *m, struct cr_err *err) must_check;

/* Text for the user: control characters, which could play tricks with a terminal, become '?'. */
const char *msg_text(char *s);

int msg_put_id(struct arena *a, const struct mig_id *id, ProtobufCBinaryData *pb);
int msg_get_id(const ProtobufCBinaryData *pb, struct mig_id *id, struct cr_err *err) must_check;
int msg_put_notes(struct arena *a, const struct msg_notes *n, Wire__Notes *pb);
int msg_get_notes(struct arena *a, struct msg_notes *n, const Wire__Notes *pb);

#define MSG_CODEC(name)                                                                            \
	int msg_put_##name(struct arena *a, const struct msg *m, void *p);                         \
	int msg_get_##name(struct arena *a, struct msg *m, void *p, struct cr_err *err)

MSG_CODEC(hello);
MSG_CODEC(error);
MSG_CODEC(nothing);
MSG_CODEC(receive);
MSG_CODEC(receive_ready);
MSG_CODEC(migrate);
MSG_CODEC(event);
MSG_CODEC(round);
MSG_CODEC(refused);
MSG_CODEC(warning);
MSG_CODEC(done);
MSG_CODEC(status_list);
MSG_CODEC(resolve);
MSG_CODEC(resolved);
MSG_CODEC(tree);
MSG_CODEC(tree_ok);
MSG_CODEC(reset);
MSG_CODEC(clock_reply);
MSG_CODEC(waiting);
MSG_CODEC(packets);
MSG_CODEC(verify);
MSG_CODEC(prepared);
MSG_CODEC(running);
MSG_CODEC(query);
MSG_CODEC(state);
MSG_CODEC(lazy);
MSG_CODEC(image);
MSG_CODEC(image_ok);
MSG_CODEC(known);
MSG_CODEC(known_ok);
MSG_CODEC(run_hook);
MSG_CODEC(files);
MSG_CODEC(files_ok);
MSG_CODEC(file);
MSG_CODEC(file_data);
