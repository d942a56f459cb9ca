"""The embedded cloud around a small stack of its own: pipe, roles, SES, life and death."""

import json
import os
import smtplib
import socket

import pytest

from local.cloud import Cloud, PortTakenError, parameter_name

TEMPLATE = """
Transform: AWS::Serverless-2016-10-31
Parameters:
  Environment: {Type: String}
  Domains: {Type: CommaDelimitedList}
Resources:
  EmailBucket:
    Type: AWS::S3::Bucket
    Properties: {BucketName: !Sub "mail-${Environment}"}
  Topic:
    Type: AWS::SNS::Topic
    Properties: {TopicName: topic}
  Dlq:
    Type: AWS::SQS::Queue
    Properties: {QueueName: dlq}
  Queue:
    Type: AWS::SQS::Queue
    Properties:
      QueueName: queue
      VisibilityTimeout: 10
      RedrivePolicy: {deadLetterTargetArn: !GetAtt Dlq.Arn, maxReceiveCount: 2}
  Subscription:
    Type: AWS::SNS::Subscription
    Properties:
      {TopicArn: !Ref Topic, Protocol: sqs, Endpoint: !GetAtt Queue.Arn, RawMessageDelivery: true}
  BucketPolicy:
    Type: AWS::S3::BucketPolicy
    Properties:
      Bucket: !Ref EmailBucket
      PolicyDocument:
        Version: "2012-10-17"
        Statement:
          Effect: Allow
          Principal: {Service: ses.amazonaws.com}
          Action: s3:PutObject
          Resource: !Sub "${EmailBucket.Arn}/emails/*"
  TopicPolicy:
    Type: AWS::SNS::TopicPolicy
    Properties:
      Topics: [!Ref Topic]
      PolicyDocument:
        Version: "2012-10-17"
        Statement:
          Effect: Allow
          Principal: {Service: ses.amazonaws.com}
          Action: sns:Publish
          Resource: !Ref Topic
  QueuePolicy:
    Type: AWS::SQS::QueuePolicy
    Properties:
      Queues: [!Ref Queue]
      PolicyDocument:
        Version: "2012-10-17"
        Statement:
          Effect: Allow
          Principal: {Service: sns.amazonaws.com}
          Action: sqs:SendMessage
          Resource: !GetAtt Queue.Arn
  Rule:
    Type: AWS::SES::ReceiptRule
    Properties:
      RuleSetName: set
      Rule:
        Name: rule
        Enabled: true
        ScanEnabled: true
        Recipients: !Ref Domains
        Actions:
          - S3Action:
              {BucketName: !Ref EmailBucket, ObjectKeyPrefix: emails/, TopicArn: !Ref Topic}
  Pipe:
    Type: AWS::Pipes::Pipe
    Properties:
      Name: pipe
      Source: !GetAtt Queue.Arn
      SourceParameters: {SqsQueueParameters: {BatchSize: 10}}
      Target: !GetAtt Starter.Arn
      TargetParameters: {LambdaFunctionParameters: {InvocationType: REQUEST_RESPONSE}}
      RoleArn: !GetAtt Role.Arn
  Starter:
    Type: AWS::Serverless::Function
    Properties:
      FunctionName: starter
      Handler: app.starter
      Runtime: python3.13
      CodeUri: functions/
      Timeout: 30
      MemorySize: 128
      Role: !GetAtt Role.Arn
      Environment: {Variables: {MACHINE: !Ref Machine, BUCKET: !Ref EmailBucket}}
  Machine:
    Type: AWS::Serverless::StateMachine
    Properties:
      Name: machine
      Type: STANDARD
      DefinitionUri: machine.asl.yaml
      DefinitionSubstitutions: {Name: !Sub "${Machine.Name}"}
      Role: !GetAtt Role.Arn
  Role:
    Type: AWS::IAM::Role
    Properties:
      AssumeRolePolicyDocument:
        Version: "2012-10-17"
        Statement:
          Effect: Allow
          Principal:
            Service: [lambda.amazonaws.com, states.amazonaws.com, pipes.amazonaws.com]
          Action: sts:AssumeRole
      Policies:
        - PolicyName: p
          PolicyDocument:
            Version: "2012-10-17"
            Statement:
              - Effect: Allow
                Action: [sqs:ReceiveMessage, sqs:DeleteMessage, sqs:GetQueueAttributes]
                Resource: !GetAtt Queue.Arn
              - Effect: Allow
                Action: lambda:InvokeFunction
                Resource: !Sub "arn:aws:lambda:${AWS::Region}:${AWS::AccountId}:function:starter"
              - {Effect: Allow, Action: states:StartExecution, Resource: !Ref Machine}
              - {Effect: Allow, Action: s3:GetObject, Resource: !Sub "${EmailBucket.Arn}/emails/*"}
              - Effect: Allow
                Action: ses:SendBounce
                Resource: !Split
                  - ","
                  - !Join
                    - ""
                    - - "arn:aws:ses:*:*:identity/"
                      - !Join [",arn:aws:ses:*:*:identity/", !Ref Domains]
Outputs:
  Machine: {Value: !Ref Machine}
  Set: {Value: !Ref Rule}
"""

MACHINE = """
QueryLanguage: JSONata
StartAt: Say
States:
  Say: {Type: Pass, Output: {machine: "${Name}", in: "{% $states.input %}"}, End: true}
"""

HANDLERS = """
import json, os
import boto3

def starter(event, context):
    if isinstance(event, dict):
        return globals()[event["do"]](event)
    failed = []
    for item in event:
        body = json.loads(item["body"])
        if "fail" in body:
            failed.append({"itemIdentifier": item["messageId"]})
            continue
        boto3.client("stepfunctions").start_execution(
            stateMachineArn=os.environ["MACHINE"],
            name=body["mail"]["messageId"],
            input=json.dumps(body["receipt"]),
        )
    return {"batchItemFailures": failed}

def get(event):
    boto3.client("s3").get_object(Bucket=os.environ["BUCKET"], Key=event["key"])

def call(event):
    client = boto3.client(event["service"])
    return str(getattr(client, event["operation"])(**event["parameters"])["ResponseMetadata"])
"""


def project(folder, template=TEMPLATE):
    (folder / "functions").mkdir(parents=True)
    (folder / "template.yaml").write_text(template)
    (folder / "machine.asl.yaml").write_text(MACHINE)
    (folder / "functions" / "app.py").write_text(HANDLERS)
    return folder


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    root = project(tmp_path_factory.mktemp("project"))
    with Cloud(root, time_factor=0.1, domains=("here.example", "there.example")) as running:
        yield running


def call(cloud, event):
    """(answer, None) or (None, (error type, message)) of the function."""
    payload, failed = cloud.runtime.invoke("starter", event)
    answer = json.loads(payload)
    return (None, answer["errorMessage"]) if failed else (answer, None)


def test_an_email_goes_through(cloud):
    raw = b"From: \xe9@x\r\nX-Local-DMARC: FAIL\r\nTo: a@b.c\r\n\r\n.\r\n\x00 \r lone\n\r\nend"
    with smtplib.SMTP(*cloud.smtp) as smtp:
        smtp.ehlo()
        smtp.mail("s@out.example")
        assert smtp.rcpt("a@here.example")[0] == 250
        assert smtp.rcpt("a@elsewhere.example")[0] == 550
        assert smtp.rcpt("b@THERE.example")[0] == 250
        assert smtp.docmd("DATA")[0] == 354
        smtp.send(raw.replace(b"\r\n.", b"\r\n..") + b"\r\n.\r\n")
        code, answer = smtp.getreply()
    assert code == 250
    message_id = answer.decode().split()[-1]
    cloud.wait_idle()
    (execution,) = cloud.executions(message_id)
    assert execution["status"] == "SUCCEEDED"
    receipt = execution["output"]["in"]
    assert execution["output"]["machine"] == "machine"
    assert receipt["recipients"] == ["a@here.example", "b@THERE.example"]
    assert receipt["dmarcVerdict"] == {"status": "FAIL"}
    assert receipt["dmarcPolicy"] == "none"
    assert receipt["spamVerdict"] == {"status": "PASS"}
    stored = cloud.client("s3").get_object(Bucket="mail-test", Key=receipt["action"]["objectKey"])
    assert stored["Body"].read() == raw.replace(b"X-Local-DMARC: FAIL\r\n", b"") + b"\r\n"


def test_a_failing_message_moves_to_its_dead_letter_queue(cloud):
    good = cloud.send(b"Subject: a\r\n\r\n", "s@x", ["a@here.example"])
    cloud.publish({"fail": True})
    cloud.wait_idle()
    assert cloud.dead_letters("Dlq") == [{"fail": True}]
    assert [e["status"] for e in cloud.executions(good)] == ["SUCCEEDED"]


def test_a_paused_pipe_starts_nothing(cloud):
    cloud.pipe.pause()
    message_id = cloud.send(b"Subject: a\r\n\r\n", "s@x", ["a@here.example"])
    assert cloud.executions(message_id) == []
    with pytest.raises(TimeoutError, match="1 waiting"):
        cloud.wait_idle(0.2)
    cloud.pipe.resume()
    cloud.wait_idle()
    assert len(cloud.executions(message_id)) == 1


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"do": "get", "key": "emails/missing"}, "(AccessDenied)"),  # no s3:ListBucket
        ({"do": "get", "key": "other"}, "not authorized to perform: s3:GetObject"),
        (
            {
                "do": "call",
                "service": "sqs",
                "operation": "send_message",
                "parameters": {"QueueUrl": "http://x/123456789012/dlq", "MessageBody": "a"},
            },
            "not authorized to perform: sqs:SendMessage",
        ),
        (
            {
                "do": "call",
                "service": "s3",
                "operation": "list_buckets",
                "parameters": {},
            },
            "does not know what s3:ListBuckets needs",
        ),
    ],
)
def test_the_role_of_the_function_decides(cloud, event, error):
    assert error in call(cloud, event)[1]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, None),
        ({"BounceSender": "mailer-daemon@elsewhere.example"}, "ses:SendBounce"),
        ({"OriginalMessageId": "unknown"}, "MessageRejected"),
        (
            {"BouncedRecipientInfoList": [{"Recipient": "x@y", "BounceType": "DoesNotExist"}]},
            "MessageRejected",
        ),
        ({"BouncedRecipientInfoList": [{"Recipient": "a@here.example"}]}, "ValidationError"),
    ],
)
def test_bounces(cloud, changes, error):
    message_id = cloud.send(b"Subject: a\r\n\r\n", "s@x", ["a@here.example"])
    cloud.bounces.clear()
    parameters = {
        "OriginalMessageId": message_id,
        "BounceSender": "mailer-daemon@here.example",
        "BouncedRecipientInfoList": [{"Recipient": "a@here.example", "BounceType": "DoesNotExist"}],
        **changes,
    }
    event = {"do": "call", "service": "ses", "operation": "send_bounce", "parameters": parameters}
    problem = call(cloud, event)[1]
    assert (error or "") in (problem or "")
    assert (problem is None) == (error is None)
    expected = {
        "to": "s@x",
        "sender": "mailer-daemon@here.example",
        "recipients": ["a@here.example"],
        "messageId": message_id,
    }
    got = [{key: bounce[key] for key in expected} for bounce in cloud.bounces]
    assert got == ([] if error else [expected])


def test_an_email_older_than_a_day_is_not_bounced(cloud):
    yesterday = cloud.now() - 25 * 3600
    message_id = cloud.send(b"A: 1\r\n\r\n", "s@x", ["a@here.example"], timestamp=yesterday)
    with pytest.raises(Exception, match="not received in the last 24 hours"):
        cloud.client("ses").send_bounce(
            OriginalMessageId=message_id,
            BounceSender="mailer-daemon@here.example",
            BouncedRecipientInfoList=[
                {"Recipient": "a@here.example", "BounceType": "DoesNotExist"}
            ],
        )


def test_injected_faults_come_first(cloud):
    cloud.gate.refuse("ses:SendBounce", "Throttling", times=2)
    codes = []
    for _ in range(3):
        try:
            cloud.client("ses").send_bounce(
                OriginalMessageId="x", BounceSender="a@b", BouncedRecipientInfoList=[]
            )
        except Exception as error:
            codes.append(error.response["Error"]["Code"])  # type: ignore[attr-defined]
    assert codes == ["Throttling", "Throttling", "ValidationError"]


def test_names_of_parameters_are_refused_as_on_aws(cloud):
    ssm = cloud.client("ssm")
    with pytest.raises(Exception, match="ValidationException"):
        ssm.put_parameter(Name="/a/anna@x", Value="v", Type="String")
    assert cloud.add_mailbox("anna_b@x.example").endswith("/anna_5fb_40x.example")


@pytest.mark.parametrize(
    ("mailbox", "name"),
    [
        ("anna@example.com", "anna_40example.com"),
        ("a_b-c.d@x", "a_5fb-c.d_40x"),
        ("é@x", "_c3_a9_40x"),
    ],
)
def test_parameter_name(mailbox, name):
    assert parameter_name(mailbox) == name


def test_headers_in_the_notification_end_at_10_kb(cloud):
    raw = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 100) for n in range(200)) + b"\r\n"
    message_id = cloud.send(raw, "s@x", ["a@here.example"])
    notification = cloud.notification(message_id)
    assert notification["mail"]["headersTruncated"]
    assert 80 < len(notification["mail"]["headers"]) < 100
    assert notification["notificationType"] == "Received"


def test_outputs_name_what_moto_did_not_create(cloud):
    arn = "arn:aws:states:ap-southeast-2:123456789012:stateMachine:machine"
    assert cloud.outputs == {"Machine": arn, "Set": "rule"}


def test_there_is_room_for_one_cloud(cloud, tmp_path):
    with pytest.raises(RuntimeError, match="already"):
        Cloud(tmp_path).start()


def test_nothing_stays_behind(cloud):
    """Last of this cloud's tests, because it ends the cloud."""
    workers = [pid for name in cloud.runtime.functions for pid in cloud.runtime.processes(name)]
    assert workers
    cloud.stop()
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    for host, port in (cloud.smtp, ("127.0.0.1", int(cloud.aws_url.rsplit(":", 1)[1]))):
        with socket.socket() as probe:
            assert probe.connect_ex((host, port)) != 0


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ("  Odd: {Type: AWS::EC2::Instance}\n", "does not know Odd"),
        ("", "substitution"),
    ],
)
def test_what_is_not_understood_stops_the_start(tmp_path, more, error):
    root = project(tmp_path / "project", TEMPLATE.replace("Outputs:\n", more + "Outputs:\n"))
    if not more:
        text = MACHINE.replace("${Name}", "${Missing}")
        (root / "machine.asl.yaml").write_text(text)
    with pytest.raises((NotImplementedError, ValueError), match=error):
        Cloud(root).start()


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"Port {port} for SMTP"):
            Cloud(tmp_path, smtp_port=port).start()
