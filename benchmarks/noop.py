"""The replies of a processor that changes nothing, for each kind of message."""

from typing import Final

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
_CONTINUE: Final = pb.CommonResponse()
REPLIES: Final = {
    "request_headers": pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=_CONTINUE)),
    "request_body": pb.ProcessingResponse(request_body=pb.BodyResponse(response=_CONTINUE)),
    "request_trailers": pb.ProcessingResponse(request_trailers=pb.TrailersResponse()),
    "response_headers": pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=_CONTINUE)),
    "response_body": pb.ProcessingResponse(response_body=pb.BodyResponse(response=_CONTINUE)),
    "response_trailers": pb.ProcessingResponse(response_trailers=pb.TrailersResponse()),
}
